"""What is attacked: data sets, architectures, training, the target zoo, and the black box that counts queries."""
