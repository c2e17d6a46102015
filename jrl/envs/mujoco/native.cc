// MuJoCo's steps as an XLA custom call on the CPU: a pure function of the states given to it.
//
// Built by native.py on first use. One `mjBatch` serves one call at a time; calls of several
// devices at once each get their own.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <mujoco/mjbatch.h>
#include <mujoco/mujoco.h>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

struct Field {
  std::ptrdiff_t offset;  // from qpos, in doubles: every mjData of a model has the same layout
  int size;
};

using Size = std::pair<int, int>;  // simulations, threads
constexpr std::size_t kSizes = 8;  // as many programs of a model take turns at full speed

struct Model {
  const mjModel* model;  // Python keeps it alive
  bool contact_forces;
  std::vector<Field> fields;
  int readings;
  std::mutex mutex;
  std::list<std::pair<Size, std::vector<mjBatch*>>> idle;  // the last used first

  // Call it with the mutex locked.
  std::vector<mjBatch*>& idle_of(Size size) {
    auto found = std::find_if(idle.begin(), idle.end(),
                              [&](const auto& entry) { return entry.first == size; });
    if (found == idle.end()) found = idle.insert(found, {size, {}});
    idle.splice(idle.begin(), idle, found);
    if (idle.size() > kSizes) {
      for (mjBatch* batch : idle.back().second) mjb_deleteBatch(batch);
      idle.pop_back();
    }
    return idle.front().second;
  }
};

std::mutex models_mutex;
std::map<std::int64_t, std::unique_ptr<Model>> models;

Model* find(std::int64_t id) {
  std::lock_guard<std::mutex> lock(models_mutex);
  auto found = models.find(id);
  return found == models.end() ? nullptr : found->second.get();
}

struct Job {
  const Model* model;
  const std::uint32_t* exact;
  const float* ctrl;
  std::uint32_t* next;
  float* high;
  float* low;
  int steps;
};

// MuJoCo prints the first warning of each kind, and keeps it in a file of the user's directory.
void silence(mjData* d) {
  for (mjWarningStat& warning : d->warning) warning.number = 1;
}

void simulate(const mjModel* m, mjData* d, int i, void* arg) {
  const Job& job = *static_cast<Job*>(arg);
  const std::size_t q = m->nq * sizeof(double), v = m->nv * sizeof(double), row = q + 2 * v;
  const char* in = reinterpret_cast<const char*>(job.exact) + i * row;
  std::memcpy(d->qpos, in, q);
  std::memcpy(d->qvel, in + q, v);
  std::memcpy(d->qacc_warmstart, in + q + v, v);
  for (int u = 0; u < m->nu; u++) d->ctrl[u] = job.ctrl[static_cast<std::size_t>(i) * m->nu + u];
  silence(d);
  if (job.steps == 0) {
    mj_forward(m, d);
    // What Gymnasium reads after a reset: contact forces come with the first step.
    mju_zero(d->cfrc_ext, 6 * m->nbody);
  } else {
    for (int s = 0; s < job.steps; s++) {
      mj_step(m, d);
      silence(d);  // a state that is not finite has been reset, and its counts with it
    }
    if (job.model->contact_forces) mj_rnePostConstraint(m, d);
  }
  char* out = reinterpret_cast<char*>(job.next) + i * row;
  std::memcpy(out, d->qpos, q);
  std::memcpy(out + q, d->qvel, v);
  std::memcpy(out + q + v, d->qacc_warmstart, v);
  std::size_t at = static_cast<std::size_t>(i) * job.model->readings;
  for (const Field& field : job.model->fields) {
    const double* x = d->qpos + field.offset;
    for (int j = 0; j < field.size; j++, at++) {
      job.high[at] = static_cast<float>(x[j]);
      job.low[at] = static_cast<float>(x[j] - job.high[at]);
    }
  }
}

ffi::Error step(ffi::Buffer<ffi::U32> exact, ffi::Buffer<ffi::F32> ctrl,
                ffi::ResultBuffer<ffi::U32> next, ffi::ResultBuffer<ffi::F32> high,
                ffi::ResultBuffer<ffi::F32> low, std::int64_t id, std::int64_t steps,
                std::int64_t threads) {
  Model* model = find(id);
  if (!model) return ffi::Error::InvalidArgument("mujoco: the environment was not made yet");
  const mjModel* m = model->model;
  const int n = static_cast<int>(exact.element_count() / (2 * (m->nq + 2 * m->nv)));
  if (n == 0) return ffi::Error::Success();
  if (ctrl.element_count() != static_cast<std::size_t>(n) * m->nu)
    return ffi::Error::InvalidArgument("mujoco: states and controls differ in number");
  const Size size(n, static_cast<int>(threads));
  mjBatch* batch = nullptr;
  {
    std::lock_guard<std::mutex> lock(model->mutex);
    auto& idle = model->idle_of(size);
    if (!idle.empty()) {
      batch = idle.back();
      idle.pop_back();
    }
  }
  if (!batch) {
    mjBatchConfig config;
    mjb_defaultConfig(&config);
    config.nthread = size.second;
    char error[500] = "";
    batch = mjb_makeBatch(m, n, &config, error, sizeof(error));
    if (!batch) return ffi::Error::Internal(std::string("mujoco: ") + error);
  }
  Job job{model,
          exact.typed_data(),
          ctrl.typed_data(),
          next->typed_data(),
          high->typed_data(),
          low->typed_data(),
          static_cast<int>(steps)};
  const int failed = mjb_apply(batch, nullptr, n, simulate, &job, 0);
  std::string error;
  for (int i = 0; failed && error.empty() && i < n; i++) error = mjb_error(batch, i);
  std::lock_guard<std::mutex> lock(model->mutex);
  model->idle_of(size).push_back(batch);
  return failed ? ffi::Error::Internal("mujoco: " + error) : ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jrl_mujoco_step, step,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::U32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<std::int64_t>("model")
                                  .Attr<std::int64_t>("steps")
                                  .Attr<std::int64_t>("threads"));

extern "C" void jrl_mujoco_register(std::int64_t id, const mjModel* model, int contact_forces,
                                    int fields, const std::int64_t* offsets,
                                    const std::int64_t* sizes) {
  std::lock_guard<std::mutex> lock(models_mutex);
  if (models.count(id)) return;
  auto made = std::make_unique<Model>();
  made->model = model;
  made->contact_forces = contact_forces;
  made->readings = 0;
  for (int i = 0; i < fields; i++) {
    made->fields.push_back({offsets[i], static_cast<int>(sizes[i])});
    made->readings += static_cast<int>(sizes[i]);
  }
  models[id] = std::move(made);
}
