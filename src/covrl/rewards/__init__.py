"""What a trace earns: answer likelihoods, and verifiers for those who have one."""
