"""The systems beside atasks, one file each: run as `python -m`, in the interpreter that has what they need.

They may import the standard library, `benchmarks.child`, and what they measure.
"""
