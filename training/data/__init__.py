"""What training learns from: the replay buffer, and hindsight goals drawn from it."""
