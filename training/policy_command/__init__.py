"""kilolayer-policy: look at published policies, check them, and exchange them with other programs."""
