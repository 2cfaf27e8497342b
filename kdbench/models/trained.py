"""Networks that finished runs have trained."""

from kdbench.data.sources import Sizes
from kdbench.errors import UserError
from kdbench.files import digest
from kdbench.models.build import build
from kdbench.models.features import Network
from kdbench.records import weights
from kdbench.records.record import Record


def sizes_of(record: Record) -> Sizes:
    """What the network of a finished run knows of its data.

    Raises:
        UserError: a record of a version of kdbench that did not write it down.
    """
    noted = record.finished.get("sizes")
    if noted is None:
        raise UserError(f"{record.directory.name} was recorded by another version of kdbench: train it again")
    return Sizes(
        noted["num_classes"], noted["in_chans"], noted["image_size"], tuple(noted["mean"]), tuple(noted["std"])
    )


def trained_network(record: Record) -> Network:
    """The student of a finished run, with the weights that it was left with.

    Raises:
        UserError: its weights are damaged, or of another version of kdbench.
    """
    sizes, student = sizes_of(record), record.config["student"]
    if digest(record.weights) != record.finished["weights_sha256"]:
        raise UserError(
            f"{record.weights} is not what its result.json describes; remove {record.directory} to train it again"
        )
    network = build(student["name"], source=student["source"], **sizes._asdict())
    weights.load_into(network.net, weights.read(record.weights, "teacher"), str(record.weights))
    return network
