//go:build linux || darwin

package app

import "syscall"

// freeSpace is how many bytes a directory has room for.
var freeSpace = func(dir string) (free int64, known bool) {
	var s syscall.Statfs_t
	if syscall.Statfs(dir, &s) != nil {
		return 0, false
	}
	return int64(s.Bavail) * int64(s.Bsize), true
}
