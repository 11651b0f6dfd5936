"""What others made and brings itself: public caches and drafts, published as if made here."""
