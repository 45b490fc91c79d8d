// Command mosaic-syslog-forwarder sends what it reads to a syslog server. The agent runs one for each stream of a
// container whose container logger is syslog.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/mosaic-cluster/mosaic/modules/containerloggers/syslog/forward"
)

func main() {
	c := forward.Config{Hostname: forward.Hostname()}
	flag.StringVar(&c.Address, "address", "", "unix://path, udp://host:port or tcp://host:port")
	flag.StringVar(&c.Format, "format", "", "rfc5424 or rfc3164")
	flag.IntVar(&c.Facility, "facility", 1, "facility by number")
	flag.IntVar(&c.Severity, "severity", 6, "severity by number")
	flag.StringVar(&c.App, "app", "", "name of what logs")
	flag.StringVar(&c.ProcID, "procid", "", "id of what logs")
	flag.IntVar(&c.Line, "line", 0, "bytes of a message's text")
	flag.IntVar(&c.Buffer, "buffer", 0, "bytes that are held")
	flag.Parse()
	c.Data = flag.Args()
	if err := forward.Run(os.Stdin, c); err != nil {
		fmt.Fprintln(os.Stderr, "mosaic-syslog-forwarder:", err)
		os.Exit(1)
	}
}
