// A driver's management library for tests: GPUS whole GPUs, of which the first is divided into PARTS parts if PARTS is
// not 0. It has nothing that the module could do without.
#include <stdio.h>
#include <string.h>

#ifndef GPUS
#define GPUS 4
#endif
#ifndef PARTS
#define PARTS 0
#endif

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6 };

struct device { int gpu, part; }; // part is -1 for a GPU as a whole
static struct device gpus[GPUS], parts[PARTS + 1];

static int setup(void) {
	for (int i = 0; i < GPUS; i++) { gpus[i].gpu = i; gpus[i].part = -1; }
	for (int i = 0; i < PARTS; i++) { parts[i].gpu = 0; parts[i].part = i; }
	return SUCCESS;
}

int nvmlInit(void) { return setup(); }
int nvmlInit_v2(void) { return setup(); }
int nvmlInitWithFlags(unsigned flags) { return setup(); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { return "stub"; }
int nvmlSystemGetDriverVersion(char *s, unsigned n) { snprintf(s, n, "580.99"); return SUCCESS; }

int nvmlDeviceGetCount_v2(unsigned *n) { *n = GPUS; return SUCCESS; }
int nvmlDeviceGetCount(unsigned *n) { return nvmlDeviceGetCount_v2(n); }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, struct device **d) {
	if (i >= GPUS) return INVALID_ARGUMENT;
	*d = &gpus[i];
	return SUCCESS;
}
int nvmlDeviceGetHandleByIndex(unsigned i, struct device **d) { return nvmlDeviceGetHandleByIndex_v2(i, d); }

int nvmlDeviceGetUUID(struct device *d, char *s, unsigned n) {
	if (d->part < 0) snprintf(s, n, "GPU-stub-%d", d->gpu);
	else snprintf(s, n, "MIG-stub-%d-%d", d->gpu, d->part);
	return SUCCESS;
}
int nvmlDeviceGetHandleByUUID(const char *s, struct device **d) {
	char uuid[64];
	for (int i = 0; i < GPUS; i++) {
		nvmlDeviceGetUUID(&gpus[i], uuid, sizeof uuid);
		if (!strcmp(s, uuid)) { *d = &gpus[i]; return SUCCESS; }
	}
	for (int i = 0; i < PARTS; i++) {
		nvmlDeviceGetUUID(&parts[i], uuid, sizeof uuid);
		if (!strcmp(s, uuid)) { *d = &parts[i]; return SUCCESS; }
	}
	return NOT_FOUND;
}
int nvmlDeviceGetMinorNumber(struct device *d, unsigned *minor) { *minor = d->gpu; return SUCCESS; }
int nvmlDeviceGetName(struct device *d, char *s, unsigned n) {
	snprintf(s, n, d->part < 0 ? "NVIDIA Stub" : "NVIDIA Stub MIG 1g.5gb");
	return SUCCESS;
}
int nvmlDeviceGetUtilizationRates(struct device *d, unsigned *u) { u[0] = 50 + d->gpu; u[1] = 25; return SUCCESS; }

#if PARTS > 0
int nvmlDeviceGetMigMode(struct device *d, unsigned *now, unsigned *later) {
	*now = *later = d->gpu == 0;
	return SUCCESS;
}
int nvmlDeviceGetMaxMigDeviceCount(struct device *d, unsigned *n) { *n = 7; return SUCCESS; }
int nvmlDeviceGetMigDeviceHandleByIndex(struct device *d, unsigned i, struct device **m) {
	if (d->gpu != 0 || i >= PARTS) return NOT_FOUND;
	*m = &parts[i];
	return SUCCESS;
}
int nvmlDeviceGetGpuInstanceId(struct device *d, unsigned *id) { *id = d->part + 1; return SUCCESS; }
int nvmlDeviceGetComputeInstanceId(struct device *d, unsigned *id) { *id = 0; return SUCCESS; }
#endif
