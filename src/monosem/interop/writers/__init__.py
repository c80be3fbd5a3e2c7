"""Writers: one file a format, each from an SAE to the files that another library reads."""
