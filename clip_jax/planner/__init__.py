"""What a training run would need and take, without the devices that would run it."""
