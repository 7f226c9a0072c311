"""Which rows of a head's tensors belong to which class."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClassRows:
    """How axis 0 of a tensor is made of the K classes of a task, in their order.

    Rows: `before` of no class, then `groups` times (K classes of `each` rows), then `after` of no
    class. A background in front is `before`; anchors that repeat all classes are `groups`; four
    numbers of a class's box are `each`.
    """

    before: int = 0
    groups: int = 1
    each: int = 1
    after: int = 0

    def count(self, classes: int) -> int:
        """Rows of a tensor of so many classes."""
        return self.before + self.groups * classes * self.each + self.after

    def of(self, index: int, classes: int) -> list[int]:
        """The rows of class `index` of so many."""
        blocks = [group * classes + index for group in range(self.groups)]
        return [self.before + block * self.each + n for block in blocks for n in range(self.each)]

    def of_no_class(self, classes: int) -> list[int]:
        """The rows that belong to no class of so many."""
        count = self.count(classes)
        return [*range(self.before), *range(count - self.after, count)]
