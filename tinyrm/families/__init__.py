"""Encoder families in torch, each as the module that export compiles: classifiers, cross-encoders and reward models."""
