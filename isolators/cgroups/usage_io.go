package cgroups

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// mostDisks bounds how many devices are told of a container; the files have a line for each that it ever used.
const mostDisks = 256

type blkioOp = mesosv1.CgroupInfo_Blkio_Operation

// disks are operations by device: how many, and how many bytes.
type disks map[[2]uint64]*disk

type disk struct{ serviced, bytes map[blkioOp]uint64 }

func (d disks) of(number string) *disk {
	a, b, ok := strings.Cut(number, ":")
	major, errA := strconv.ParseUint(a, 10, 32)
	minor, errB := strconv.ParseUint(b, 10, 32)
	if !ok || errA != nil || errB != nil {
		return nil
	}
	key := [2]uint64{major, minor}
	if d[key] == nil {
		if len(d) == mostDisks {
			return nil
		}
		d[key] = &disk{map[blkioOp]uint64{}, map[blkioOp]uint64{}}
	}
	return d[key]
}

// blkio reads what a container has read and written; nil where the machine does not count it.
func (g group) blkio() *mesosv1.CgroupInfo_Blkio_Statistics {
	d := disks{}
	if g.unified() {
		text, ok := g.read("io", "io.stat")
		if !ok {
			return nil
		}
		d.readV2(text)
	} else {
		for _, f := range []struct {
			file string
			to   func(*disk) map[blkioOp]uint64
		}{
			{"blkio.throttle.io_serviced", func(d *disk) map[blkioOp]uint64 { return d.serviced }},
			{"blkio.throttle.io_service_bytes", func(d *disk) map[blkioOp]uint64 { return d.bytes }},
		} {
			// What nested containers do is in the file that counts them in, where the kernel has it.
			text, ok := g.read("blkio", f.file+"_recursive")
			if !ok {
				if text, ok = g.read("blkio", f.file); !ok {
					return nil
				}
			}
			d.readV1(text, f.to)
		}
	}
	return d.statistics()
}

// readV1 reads lines such as "8:0 Read 4096". The last, the sum of all devices, has no device.
func (d disks) readV1(text string, to func(*disk) map[blkioOp]uint64) {
	ops := map[string]blkioOp{
		"Total": mesosv1.CgroupInfo_Blkio_TOTAL, "Read": mesosv1.CgroupInfo_Blkio_READ, "Write": mesosv1.CgroupInfo_Blkio_WRITE,
		"Sync": mesosv1.CgroupInfo_Blkio_SYNC, "Async": mesosv1.CgroupInfo_Blkio_ASYNC, "Discard": mesosv1.CgroupInfo_Blkio_DISCARD,
	}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		op, known := ops[f[1]]
		n, err := strconv.ParseUint(f[2], 10, 64)
		if !known || err != nil {
			continue
		}
		if disk := d.of(f[0]); disk != nil {
			to(disk)[op] = n
		}
	}
}

// readV2 reads lines such as "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0".
func (d disks) readV2(text string) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		disk := d.of(f[0])
		if disk == nil {
			continue
		}
		for _, field := range f[1:] {
			name, value, _ := strings.Cut(field, "=")
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				continue
			}
			switch name {
			case "rbytes":
				disk.bytes[mesosv1.CgroupInfo_Blkio_READ] = n
			case "wbytes":
				disk.bytes[mesosv1.CgroupInfo_Blkio_WRITE] = n
			case "dbytes":
				disk.bytes[mesosv1.CgroupInfo_Blkio_DISCARD] = n
			case "rios":
				disk.serviced[mesosv1.CgroupInfo_Blkio_READ] = n
			case "wios":
				disk.serviced[mesosv1.CgroupInfo_Blkio_WRITE] = n
			case "dios":
				disk.serviced[mesosv1.CgroupInfo_Blkio_DISCARD] = n
			}
		}
		for _, m := range []map[blkioOp]uint64{disk.bytes, disk.serviced} {
			total := uint64(0)
			for _, n := range m {
				total += n
			}
			m[mesosv1.CgroupInfo_Blkio_TOTAL] = total
		}
	}
}

func (d disks) statistics() *mesosv1.CgroupInfo_Blkio_Statistics {
	s := &mesosv1.CgroupInfo_Blkio_Statistics{}
	for key, disk := range d {
		s.Throttling = append(s.Throttling, &mesosv1.CgroupInfo_Blkio_Throttling_Statistics{
			Device:     &mesosv1.Device_Number{MajorNumber: &key[0], MinorNumber: &key[1]},
			IoServiced: values(disk.serviced), IoServiceBytes: values(disk.bytes),
		})
	}
	slices.SortFunc(s.Throttling, func(a, b *mesosv1.CgroupInfo_Blkio_Throttling_Statistics) int {
		return cmp.Or(cmp.Compare(a.GetDevice().GetMajorNumber(), b.GetDevice().GetMajorNumber()),
			cmp.Compare(a.GetDevice().GetMinorNumber(), b.GetDevice().GetMinorNumber()))
	})
	return s
}

func values(m map[blkioOp]uint64) []*mesosv1.CgroupInfo_Blkio_Value {
	var list []*mesosv1.CgroupInfo_Blkio_Value
	for op, n := range m {
		list = append(list, &mesosv1.CgroupInfo_Blkio_Value{Op: op.Enum(), Value: &n})
	}
	slices.SortFunc(list, func(a, b *mesosv1.CgroupInfo_Blkio_Value) int { return cmp.Compare(a.GetOp(), b.GetOp()) })
	return list
}
