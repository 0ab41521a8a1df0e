"""What a task's `data` may name: folders in several layouts, archives, TFDS datasets and synthetic cases."""
