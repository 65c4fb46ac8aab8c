def curves(a, b):
    pass


def confusion(a, b, c):
    pass
