"""``python -m cpploop [-m MODULE | SCRIPT | -c CODE] ARGS...``; see cpploop._launch."""

from cpploop._launch import main

if __name__ == "__main__":
    main()
