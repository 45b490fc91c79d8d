// Command bench measures the machine's floor and then the built programs, and prints one line for each row of the
// performance goals: name, value, floor, ratio, goal.
//
// It judges only a quiet machine: with less than 80 % idle before the run it says that it cannot.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

func main() {
	// As a task, this program says when it ended: the last thing it does is to print the time.
	if len(os.Args) > 1 && os.Args[1] == "stamp" {
		fmt.Println(time.Now().UnixNano())
		return
	}
	// As an executor, it says of its tasks that they run.
	if len(os.Args) > 1 && os.Args[1] == "talk" {
		if err := talk(); err != nil {
			fmt.Fprintln(os.Stderr, "talk:", err)
			os.Exit(1)
		}
		return
	}
	rows := flag.String("rows", "", "only rows whose names contain this")
	composition := flag.String("composition", "", "HCL file to run the agent with, instead of the default modules")
	bin := flag.String("bin", "bin", "folder of the built programs")
	flag.Parse()
	if err := run(*rows, *composition, *bin); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// row is one line of the table.
type row struct {
	name  string
	value float64
	unit  string // ms, s, /s, MiB or x
	floor float64
	goal  float64 // at most; a negative one is at least
}

// report prints rows as they come.
type report struct {
	out  *tabwriter.Writer
	only string
}

// wants says whether a row, or one of the group of that name, is asked for.
func (r *report) wants(name string) bool {
	return strings.Contains(name, r.only) || strings.HasPrefix(r.only, name+"/")
}

func (r *report) add(w row) {
	ratio, floor, verdict := "-", "-", "-"
	if w.floor > 0 {
		floor = fmt.Sprintf("%.3g", w.floor)
		ratio = fmt.Sprintf("%.1f", w.value/w.floor)
	}
	goal := "-"
	if w.goal > 0 {
		goal = fmt.Sprintf("%.3g", w.goal)
		verdict = "pass"
		if w.value > w.goal {
			verdict = "miss"
		}
	}
	if w.goal < 0 { // at least
		goal, verdict = fmt.Sprintf(">%.3g", -w.goal), "pass"
		if w.value < -w.goal {
			verdict = "miss"
		}
	}
	fmt.Fprintf(r.out, "%s\t%.3g %s\t%s\t%s\t%s\t%s\n", w.name, w.value, w.unit, floor, ratio, goal, verdict)
	r.out.Flush()
}

func run(only, composition, bin string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "mbench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	idle, err := idleShare(2 * time.Second)
	if err != nil {
		return err
	}
	fmt.Printf("machine: %s cores, %.0f %% idle\n", cores(), idle*100)
	if idle < 0.8 {
		fmt.Println("less than 80 % idle: the figures below cannot be judged against the goals")
	}
	rep := &report{out: tabwriter.NewWriter(os.Stdout, 34, 4, 2, ' ', 0), only: only}
	fmt.Fprintln(rep.out, "name\tvalue\tfloor\tratio\tgoal\t")
	f, err := measureFloor(dir)
	if err != nil {
		return fmt.Errorf("measure the floor: %w", err)
	}
	for _, w := range f.rows() {
		rep.add(w)
	}
	var text []byte
	if composition != "" {
		if text, err = os.ReadFile(composition); err != nil {
			return err
		}
	}
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	b := &bench{composition: string(text), ctx: ctx, dir: dir, bin: bin, floor: f, report: rep, account: openAccount()}
	defer b.account.close()
	for _, step := range []func() error{b.idle, b.launches, b.many, b.memory, b.moduleRestart, b.moduleCall, b.coldStart, b.pulls, b.images, b.placements, b.updates, b.library} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func cores() string {
	out, err := exec.Command("nproc").Output()
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(out))
}

// idleShare is the machine's idle time over d, from /proc/stat.
func idleShare(d time.Duration) (float64, error) {
	read := func() (idle, total float64, err error) {
		data, err := os.ReadFile("/proc/stat")
		if err != nil {
			return 0, 0, err
		}
		line, _, _ := strings.Cut(string(data), "\n")
		for i, f := range strings.Fields(line)[1:] {
			v, err := strconv.ParseFloat(f, 64)
			if err != nil {
				return 0, 0, err
			}
			total += v
			if i == 3 || i == 4 {
				idle += v
			}
		}
		return idle, total, nil
	}
	i0, t0, err := read()
	if err != nil {
		return 0, err
	}
	time.Sleep(d)
	i1, t1, err := read()
	if err != nil {
		return 0, err
	}
	return (i1 - i0) / (t1 - t0), nil
}
