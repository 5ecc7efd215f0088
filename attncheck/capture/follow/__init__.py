"""Softmax attention that modules compute by themselves: tensors are followed to where they meet."""
