"""Networks trained by finished runs."""

from kdbench.config.networks import network_options
from kdbench.data.sources import Sizes
from kdbench.errors import UserError
from kdbench.files import digest
from kdbench.models.build import build
from kdbench.models.features import Network
from kdbench.records import weights
from kdbench.records.record import Record


def sizes_of(record: Record) -> Sizes:
    """The sizes of the data for which the network of a finished run was built.

    Raises:
        UserError: the run was recorded by a version of kdbench that did not store them.
    """
    sizes = record.finished.get("sizes")
    if sizes is None:
        raise UserError(f"{record.directory.name} was recorded by another version of kdbench: train it again")
    return Sizes(
        sizes["num_classes"], sizes["in_chans"], sizes["image_size"], tuple(sizes["mean"]), tuple(sizes["std"])
    )


def trained_network(record: Record) -> Network:
    """The student of a finished run, with its final weights.

    Raises:
        UserError: the weights are damaged, or the run was recorded by another version of kdbench.
    """
    sizes = sizes_of(record)
    if digest(record.weights) != record.finished["weights_sha256"]:
        raise UserError(
            f"{record.weights} is not what its result.json describes; remove {record.directory} to train it again"
        )
    network = build(**network_options(record.config["student"]), **sizes._asdict())
    weights.load_into(network.net, weights.read(record.weights, "teacher"), str(record.weights))
    return network
