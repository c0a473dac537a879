from configs import need_packages

need_packages()
