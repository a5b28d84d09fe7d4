"""The edit's own motion: from points of the edited scene to points of the captured one."""
