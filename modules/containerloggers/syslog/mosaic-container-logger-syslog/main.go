// Command mosaic-container-logger-syslog serves the container logger syslog as a binary of its own.
package main

import (
	"github.com/mosaic-cluster/mosaic/modules/containerloggers/syslog"
	"github.com/mosaic-cluster/mosaic/sdk/module"
)

func main() { module.Serve(syslog.New()) }
