package client

import (
	"fmt"
	"syscall"

	"github.com/songgao/water"
)

// provision makes a persistent TUN device in the calling thread's network
// namespace, and leaves it to others to open.
func provision(name string) error {
	// The library's descriptor is inherited by a process that is started meanwhile,
	// which would keep the device busy for as long as it lives.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	device, err := water.New(water.Config{DeviceType: water.TUN, PlatformSpecificParams: water.PlatformSpecificParams{Name: name, Persist: true}})
	if err != nil {
		return fmt.Errorf("provision TUN device %s: %w", name, err)
	}
	return device.Close()
}
