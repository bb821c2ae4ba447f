"""Which slots of the lanes' arrays are free, as a plan is made."""


class FreeSlots:
    """Hands out the numbers of slots, those given back first."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self.count = 0

    def take(self) -> int:
        if self._free:
            return self._free.pop()
        self.count += 1
        return self.count - 1

    def give_back(self, slot: int) -> None:
        self._free.append(slot)
