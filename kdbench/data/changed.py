"""A training loader whose finished batches are changed on the device, the same for both kinds of loaders."""

from collections.abc import Callable, Iterator, Sequence

from kdbench.data.batch import Batch, Loader

# Changes the batches of an epoch: batches, epoch, number of batches, images in each.
Change = Callable[[Iterator[Batch], int, int, int], Iterator[Batch]]


class ChangedLoader:
    """The batches of another loader, changed.

    Args:
        loader: of training.
        changes: in the order in which they are made.
        batch_size: images in each batch.
    """

    batch_sampler = None  # Lightning looks for it on objects that have a sampler

    def __init__(self, loader: Loader, changes: Sequence[Change], batch_size: int) -> None:
        self.loader, self.changes, self.batch_size = loader, changes, batch_size
        self.epoch = 0

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return len(self.loader)

    @property
    def sampler(self) -> "ChangedLoader":
        """The loader itself: Lightning's Trainer calls `set_epoch` on a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation the next iteration uses."""
        self.epoch = epoch
        self.loader.set_epoch(epoch)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the current epoch; the epoch is read when the first batch is requested."""
        batches = iter(self.loader)
        for change in self.changes:
            batches = change(batches, self.epoch, len(self), self.batch_size)
        for batch in batches:
            yield batch._replace(views=None)
