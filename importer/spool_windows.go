package importer

import (
	"errors"
	"os"
	"syscall"
	"unsafe"
)

var (
	kernel32          = syscall.NewLazyDLL("kernel32.dll")
	lockFileEx        = kernel32.NewProc("LockFileEx")
	getDiskFreeSpace  = kernel32.NewProc("GetDiskFreeSpaceExW")
	errDiskFull       = syscall.Errno(112) // ERROR_DISK_FULL
	errHandleDiskFull = syscall.Errno(39)  // ERROR_HANDLE_DISK_FULL
)

// lockFile takes f for this process, or fails when another one has it. The lock ends with f. It is on one byte far
// behind the content, for on Windows a locked byte cannot be read by others.
func lockFile(f *os.File) error {
	const exclusive, failAtOnce = 2, 1
	at := syscall.Overlapped{OffsetHigh: 0x7fffffff}
	ok, _, err := lockFileEx.Call(f.Fd(), exclusive|failAtOnce, 0, 1, 0, uintptr(unsafe.Pointer(&at)))
	if ok == 0 {
		return err
	}
	return nil
}

// removeLocked closes f before it removes its file, for an open one cannot be removed.
func removeLocked(f *os.File) error {
	f.Close()
	return os.Remove(f.Name())
}

func diskFull(err error) bool {
	return errors.Is(err, errDiskFull) || errors.Is(err, errHandleDiskFull)
}

// freeBytes tells how much may still be written to dir.
func freeBytes(dir string) (free int64, known bool) {
	name, err := syscall.UTF16PtrFromString(dir)
	if err != nil {
		return 0, false
	}
	var n uint64
	ok, _, _ := getDiskFreeSpace.Call(uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&n)), 0, 0)
	return int64(n), ok != 0
}
