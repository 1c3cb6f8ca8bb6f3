"""Weights in and out: safetensors, Google's TensorFlow checkpoints, image ViTs (`python -m weights`)"""
