raise OSError("libaccelerator.so: cannot open shared object file")
