"""The target cache: bytes, codecs, index, parts, and how training reads them; see docs/formats/target_cache.md."""
