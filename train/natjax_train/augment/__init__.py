"""What is done to training images: on the host (`host`, `randaugment`, by a `policy`) and on the device (`device`)."""
