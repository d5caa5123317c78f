"""Discrete units to speech: the unit HiFi-GAN, its training and its batch synthesis."""
