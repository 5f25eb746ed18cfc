"""Every row of the survival table, in order."""

from tests.survival import damage, hostile, outside, resuming, saving, troubles

ROWS = (
    (1, saving.killed_while_saving),
    (2, saving.faults_while_saving),
    (2, saving.faults_in_a_run),
    (3, damage.damaged_newest),
    (4, resuming.exact_resume),
    (6, resuming.signals_anywhere),
    (6, resuming.signals_at_the_start),
    (8, hostile.bad_pictures),
    (9, troubles.bad_samples),
    (13, troubles.not_finite),
    (14, damage.full_disk),
    (15, troubles.no_memory),
    (16, damage.two_runs),
    (17, hostile.unsafe_files),
    (18, troubles.failing_logger),
    (19, outside.interrupted_lists),
    (20, outside.no_network),
)
