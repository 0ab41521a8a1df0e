"""Which start to take: several sources side by side on one target, ranked with a placebo and a positive control.

    python -m launch.study --config=configs/sources.py:TARGET,SOURCE_A+SOURCE_B+given:FOLDER --workdir=runs/sources

TARGET and each SOURCE are what `data` takes (folders of images and labels, built-in tasks) or names of sets that
configs/pairs.py knows, then with the folder that all of them lie in: TARGET,SOURCE+SOURCE,FOLDER; with ,slices behind
it volumes are segmented slice by slice, those of folders across the axial axis. A source becomes the arm
`transfer_NAME`, whose networks this study trains. `given:FOLDER` becomes `given_NAME`: all seeds start from the one
network in that folder, and what is said of it is said of this checkpoint. `A++B` is one source that is pooled from two
sets, with labels joined by name, and becomes `transfer_A-B`. `ssl` stands for the arms `ssl_source`, which learns from
the images of the first SOURCE if there is one, and `ssl_target`. Eight seeds of 500 steps with three sources take about
half an hour on two CPU cores, and the page says which start to take (docs/ranking.md).
"""

from ml_collections import ConfigDict

from configs import default, pairs

LABEL_FREE = ("ssl_source", "ssl_target")
POOL = "++"
"""Between sets that are pooled to one source; one + separates sources."""


def arm_name(prefix: str, data: str) -> str:
    """The arm of a source: the last part of its path, with a dash for what an arm's name cannot hold."""
    lasts = []
    for one in data.split(POOL):
        parts = [part for part in one.split("/") if part]
        if not parts:
            raise ValueError(f"{data!r} names no folder; a source is a folder, synthetic:NAME, given:FOLDER or ssl")
        lasts.append(parts[-1])
    last = "-".join(lasts)
    return f"{prefix}_" + "".join(c if c.isascii() and (c.isalnum() or c in "_.") else "-" for c in last)


def task_of(name: str, folder: str, ndim: int, slices: bool) -> ConfigDict:
    """A set's own settings, or those that suit most images of a folder; of pooled sets, those of the first."""
    if POOL in name:
        tasks = [task_of(one, folder, ndim, slices) for one in name.split(POOL)]
        tasks[0].data = "+".join(task.data for task in tasks)
        tasks[0].val_cases = max(tasks[0].val_cases, len(tasks))
        return tasks[0]
    task = default.task()
    if name in pairs.SETS:
        pairs.set_task(task, name, folder, ndim)
        return task
    task.data = f"{folder}/{name}" if folder else name
    task.patch = (32, 32, 32) if ndim == 3 else (64, 64)
    # What lies in a folder is not known here: its volumes are cut where that is asked for.
    task.as_slices = "axial" if slices else ""
    task.val_cases = 2
    task.augment.gamma = 0.2
    task.augment.brightness = 0.2
    return task


def get_config(study: str = "hippocampus_mr,cardiac_ed_mr+rodent_brain_epi") -> ConfigDict:
    """The study; `study` is TARGET,SOURCE+SOURCE, with ,FOLDER or with ,FOLDER,slices."""
    target, sources, folder, how = (*study.split(","), "", "", "")[:4]
    wanted = [name.replace("\0", POOL) for name in sources.replace(POOL, "\0").split("+")]
    if not target or not all(wanted):
        raise ValueError(f"{study!r}: give TARGET,SOURCE+SOURCE")
    if how not in ("", "slices"):
        raise ValueError(f"{how!r} after the folder; give 'slices' or nothing")
    trained = [name for name in wanted if name != "ssl" and not name.startswith("given:")]
    config = default.get_config()
    config.name = f"which start for {default.title_of(target)}"
    config.vary = "init,order,subset"
    pooled = {one for name in trained for one in name.split(POOL)}
    ndim = 2 if how or {target, *pooled} & {*pairs.IMAGES} else 3
    config.model.ndim = ndim
    config.model.widths = (8, 16, 32, 64) if ndim == 2 else (8, 16, 32)
    config.target = task_of(target, folder, ndim, bool(how))
    config.target.train_cases = (pairs.SETS.get(target, {}).get("sizes", (4, 8))[1],)
    # The source of arms that name none of their own.
    config.source = task_of((trained or [target])[0], folder, ndim, bool(how))

    config.optim.schedule = "constant"
    config.train.average = 0.2
    config.train.batch = 4 if ndim == 2 else 1
    config.train.steps = 500
    config.train.log_every = 10
    # C1 needs a validation every 10 steps. Two cases of 8 windows (32^3) are 16 passes forward, as long as 5 steps of
    # batch 1: 50 validations would take half as long again as the training, and what is asked here is which start wins.
    config.train.eval_every = 50
    config.train.save_every = 250
    config.pretrain.steps = 500
    config.pretrain.eval_every = 250
    config.evaluate.val_overlap = 0.0

    config.arms = default.pick_arms("scratch", "scratch_b", "self_transfer", config=config)
    for name in wanted:
        if name == "ssl":
            arms = default.pick_arms(*(LABEL_FREE if trained else LABEL_FREE[1:]), config=config)
        elif name.startswith("given:"):
            given = {"from_workdir": name.removeprefix("given:"), "share": "one"}
            arms = {arm_name("given", name.removeprefix("given:")): default.arm("pretrained", "none", pretrain=given)}
        else:
            source = task_of(name, folder, ndim, bool(how))
            arms = {arm_name("transfer", name): default.arm("pretrained", "none", source=source)}
        for arm, made in arms.items():
            if arm in config.arms:
                raise ValueError(f"two sources would be the arm {arm!r}; give folders of different names")
            config.arms[arm] = made
    return config
