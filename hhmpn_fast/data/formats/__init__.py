"""What files hold, without knowing of splits or modalities: ARFF, .npz, tab-separated tables, word vectors."""
