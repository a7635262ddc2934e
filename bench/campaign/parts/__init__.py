"""The eleven parts, a file each, whose function of the same name takes a record and notes in it what it finds; an
exception, too, makes the verdict bad.

They put together what bench/ and tests/ have: the shapes of the compiler's tables, the cases that the kernels pass in
Triton's interpreter, the step's restatement, the benchmarks. In a dry run the same code takes fewer and smaller cases
on the CPU.
"""
