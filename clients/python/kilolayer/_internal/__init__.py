"""What our client and server share beyond the public contract. Other programs should use `kilolayer.v1`."""
