"""The experiments of Margossian & Blei (2024), one file each, and what they share.

Every experiment is a function ``run(settings, n_jobs)`` that returns a `Report`; its settings are
a frozen dataclass with the published values as defaults and a smaller set, ``QUICK``.
"""
