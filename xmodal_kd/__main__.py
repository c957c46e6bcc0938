"""``python -m xmodal_kd``, which is what ``accelerate launch -m`` starts."""

from .cli.main import main

if __name__ == "__main__":
    main()
