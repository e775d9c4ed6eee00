"""What a run will cost: counting its operations and bytes, and dividing them by a machine's rates."""
