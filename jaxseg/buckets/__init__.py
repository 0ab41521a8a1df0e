"""Workdirs in a bucket of Google Cloud Storage or S3: a study works in a local copy, which the bucket follows.

A bucket has no renames, no locks and no appends, on which checkpoints and tables rely. A study therefore works in a
local folder, and `mirror` brings the bucket to the folder's state again and again. The bucket holds

    manifests/        the last whole state: each file's path, size and SHA-256 (see `states`)
    objects/          the content of the files, each object named by its SHA-256 and never changed
    lease/            which process works on the workdir (see `lease`)
    report.html, results/, figures/    copies of the files that people open, under their own names

Objects are written before the manifest that names them, and removed only when no manifest names them any more. Whenever
a process dies or a connection drops, the bucket thus holds one whole state, the one of its manifest.
"""
