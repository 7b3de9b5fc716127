"""The pure computation: networks, steps, convolutions. It imports nothing of ours but itself."""
