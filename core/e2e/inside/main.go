// Command inside prints what a container sees of the world: its root, its processes, its user, its limits.
//
// It is static and needs nothing, so it can be the only file of a root filesystem.
package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

func main() {
	host, _ := os.Hostname()
	fmt.Printf("pid %d, uid %d, host %s\n", os.Getpid(), os.Getuid(), host)
	entries, err := os.ReadDir("/")
	if err != nil {
		fmt.Println("root cannot be read:", err)
		os.Exit(1)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	fmt.Println("root:", strings.Join(names, " "))
	if wd, err := os.Getwd(); err == nil {
		fmt.Println("working directory:", wd)
	}
	for _, f := range os.Args[1:] {
		data, err := os.ReadFile(f)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Printf("%s:\n%s", f, data)
	}
}
