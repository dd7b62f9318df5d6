"""What goes wrong through no fault of the program: one exception, one plain line."""


class DanqingError(Exception):
    """Something a person can mend: a file, a field, a full disk.

    The message is one line that names the file or field, says what is wrong and what to do.
    The command line prints it and exits with 2; a server answers with a 4xx.
    """
