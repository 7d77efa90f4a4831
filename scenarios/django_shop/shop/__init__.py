# shop/__init__.py
