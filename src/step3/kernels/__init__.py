"""The hot operations, one file each: a plain torch reference and faster backends behind one function."""
