"""The numbers behind multi_hash, as RecIS's IDMultiHash has them."""

from recis_lightning.schema import MultiHash

MULTIPLIERS, FACTORS = (1, 3, 5, 7), (29, 47, 67, 83)
# With these witnesses the test of Miller and Rabin is exact below 3.3e24 (Sorenson and Webster 2015).
_WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)


def find_hashes(transform: MultiHash) -> list[tuple[int, int, int, int]]:
    """(multiplier, prime, buckets, shift) of each hash; buckets [1000] -> [(1, 28979, 1000, 0)]."""
    hashes, shift = [], 0
    for multiplier, factor, buckets in zip(MULTIPLIERS, FACTORS, transform.buckets, strict=False):
        hashes.append((multiplier, largest_prime(factor * buckets), buckets, shift))
        shift += buckets
    if transform.index is None:
        return hashes
    multiplier, prime, buckets, _ = hashes[transform.index]
    return [(multiplier, prime, buckets, 0)]


def largest_prime(limit: int) -> int:
    """The largest prime up to ``limit``, at least 2: 10 -> 7."""
    return next(number for number in range(limit, 1, -1) if is_prime(number))


def is_prime(number: int) -> bool:
    if number < 2 or any(number % witness == 0 for witness in _WITNESSES):
        return number in _WITNESSES
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    return all(_passes(number, witness, odd, twos) for witness in _WITNESSES)


def _passes(number: int, witness: int, odd: int, twos: int) -> bool:
    power = pow(witness, odd, number)
    if power in (1, number - 1):
        return True
    for _ in range(twos - 1):
        power = power * power % number
        if power == number - 1:
            return True
    return False
