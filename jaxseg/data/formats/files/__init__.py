"""Files of images and label maps: one table of formats, and what reads and writes through it."""
