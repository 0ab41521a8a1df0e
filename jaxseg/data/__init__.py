"""Folders of images, TFDS stores or synthetic volumes become arrays that compiled code samples from."""
