"""Parts that MuJoCo models are built from: mazes, walls, scenery, and the robots that brax ships."""
