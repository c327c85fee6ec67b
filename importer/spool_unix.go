//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package importer

import (
	"errors"
	"os"
	"syscall"
)

// lockFile takes f for this process, or fails when another one has it. The lock ends with f.
func lockFile(f *os.File) error {
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}

// removeLocked removes the file of f while it is still locked, so that nobody else gets hold of it in between.
func removeLocked(f *os.File) error { return os.Remove(f.Name()) }

func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
