"""64-bit hashes of byte strings: FarmHash Fingerprint64 and MurmurHash64A."""
