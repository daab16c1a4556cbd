module xnli/examples

go 1.24
